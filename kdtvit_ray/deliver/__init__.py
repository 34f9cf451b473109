"""A study for those who did not run it: its model exported, used on new images, explained; its trials on trackers."""
