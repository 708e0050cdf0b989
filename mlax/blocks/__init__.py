"""Ready-made blocks: what networks are built of most often, one file for each kind."""
