"""Deep SVDD: network, objectives, training and the estimator."""
