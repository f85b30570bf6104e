"""The measures of studies: one file for each, and one registry."""
