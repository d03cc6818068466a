"""What a dataset looks like: the variants, their sources, the features of their rows, and the builders.

Nothing is imported here, so that `import builders` costs nothing; import the module that you need::

    from builders.variants import get_variant      # the table of ImageNet variants (standard library only)
    from builders.sources import open_source       # rows of a variant, from the Hub or from a folder
    from builders.imagenet import ImageNet         # the same rows as a `datasets` builder
"""
