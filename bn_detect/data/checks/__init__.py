"""The check of a dataset before training: annotations, masks, keypoints and image files."""
