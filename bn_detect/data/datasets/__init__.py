"""One file for each dataset that the package knows, and their registry."""
