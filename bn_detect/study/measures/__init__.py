"""What a study can measure: one file for each measure, and one registry of them."""
