"""The experiment: data, network, training, metrics and figures. DVC watches this folder."""
