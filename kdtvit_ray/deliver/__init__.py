"""A study's model for those who did not run the study: exported, used on new images, explained, told to trackers."""
