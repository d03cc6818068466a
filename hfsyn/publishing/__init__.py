"""How a finished run becomes a versioned dataset on the Hub, and how it is read back and checked."""
