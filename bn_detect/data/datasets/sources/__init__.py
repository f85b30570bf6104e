"""Where the real images and texts come from: wheels and archives, verified by their checksums."""
