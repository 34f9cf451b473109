"""What leaves a study: models for use, explanations, and runs on trackers."""
