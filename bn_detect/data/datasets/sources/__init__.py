"""Sources of real images and texts: wheels and archives, verified by their checksums."""
