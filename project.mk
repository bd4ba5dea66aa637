# The targets that belong to this experiment. The Makefile includes them.
.PHONY: experiments explore bench docs mutants

# DVC's table of everything is several screens wide: without hashes and detailed metrics it fits one.
experiments: setup ## the experiments side by side: parameters that differ, validation and test MSE
	@$(BIN)/python -m dvc exp show --only-changed --keep 'valid\.best_mse|test\.mse' \
	    --drop '.*/|accuracy|codes|dataset$$|test\.|valid\.|model\.n_parameters'

explore: setup ## the page on which to move through the latent space; evaluates the model first if it changed
	@$(BIN)/python -m dvc repro --quiet evaluate
	@echo 'open file://$(CURDIR)/models/explorer.html'

bench: setup ## speed, quality and what tracking and checkpoints cost, measured here (over two hours)
	@for name in throughput cuda time_to_quality quality recipe growth overhead checkpoint tracking table; do \
	    $(BIN)/python -m benchmarks.$$name || exit 1; done

docs: setup ## write the reference pages from the code
	@$(BIN)/python -m docs.generate

# One thread, so that a process that forks has no others.
mutants: setup-dev ## change the code in small ways and list what no test notices (ONLY='pipeline.core.metrics*')
	@OMP_NUM_THREADS=1 $(BIN)/python -m mutmut run $(if $(ONLY),'$(ONLY)')
	@$(BIN)/python -m mutmut results | grep -v ': not checked'
