"""Measure a whole training at the committed parameters on a CUDA GPU, compared with both references there.

    python -m benchmarks.cuda      (2 minutes)

Only the training steps are timed, without validation and the recording of the CUDA graph. The references
(`benchmarks.seed`) have the same `n_layers` and train for as many epochs. Trainings alternate, ROUNDS of each. Needs
data/prepared/train.safetensors. Imports only the packages torch, numpy, safetensors, pydantic and PyYAML, but also
records the versions of scikit-learn and matplotlib. Writes reports/benchmarks/cuda.json, or nothing without a GPU.
"""

import torch

from benchmarks.common import committed_params, load_pixels, machine, spread, training_seconds, write_result
from benchmarks.seed import REFERENCES, seconds_of_original_loop
from pipeline.autoencoder.model import Architecture, AutoEncoder
from pipeline.autoencoder.trainer import PRECISIONS

ROUNDS = 3


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA GPU: not measured")
        return
    params = committed_params()
    assert params.model.n_layers is not None, "params.yaml has a number of layers"
    n_epochs = params.train.n_epochs
    train = load_pixels("train", "cuda")
    seconds: dict[str, list[float]] = {name: [] for name in (*REFERENCES, *PRECISIONS)}
    for _ in range(ROUNDS):
        for name, network in REFERENCES.items():
            reference = network(params.model.bottleneck_size, params.model.n_layers)
            seconds[name].append(seconds_of_original_loop(reference, train, n_epochs))
        for precision in PRECISIONS:
            model = AutoEncoder(Architecture.from_params(params.model)).to("cuda")
            changed = params.train.model_copy(update={"precision": precision})
            seconds[precision].append(training_seconds(model, train, changed))
        print(", ".join(f"{name} {values[-1]:.2f} s" for name, values in seconds.items()), flush=True)
    training_seconds_of = {name: spread(values) for name, values in seconds.items()}
    write_result("cuda", {"machine": machine("cuda:0"), "n_epochs": n_epochs, "training_seconds": training_seconds_of})


if __name__ == "__main__":
    main()
