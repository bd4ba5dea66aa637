# The targets that belong to this experiment. The Makefile includes them.
.PHONY: experiments

experiments: setup ## the experiments side by side
	@$(BIN)/python -m dvc exp show --only-changed
