"""Who gives the texts of a run: captioners, language models, files, earlier captions."""
