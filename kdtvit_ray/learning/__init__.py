"""Models, losses, the training of one stage and of one chain in process: pure torch, no Ray, no Optuna."""
