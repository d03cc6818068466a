"""Templates of dataset cards: data only."""
