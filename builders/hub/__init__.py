"""What the Hub says: its answers in plain words, revisions as commits, and broken streams taken up again."""
