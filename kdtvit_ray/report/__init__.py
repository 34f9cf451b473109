"""Tables, figures and the HTML page of a study, from its folder alone: no torch, no Ray, no Optuna."""
