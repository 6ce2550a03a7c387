"""Runs that tune themselves, as trials of Ray Tune.

Run ``python examples/clusters/ray_tune.py``: digits of scikit-learn, a minute. Ray's trials run
where there is no Optuna trial, so each is a ``SelfTuning`` run: Ray's Optuna search, with the
sampler of this package, proposes where it starts. Needs ``pip install
"optuna_glocal[examples,ray]"``.
"""

import argparse

from task import setup

from optuna_glocal import GlocalSampler, SelfTuning


def train(config):
    """One trial: ``lr`` is where it starts; the seed of the weights is held."""
    from ray import tune

    optimizer, training_loss, validation_loss, validate = setup(config["lr"], config["seed"])
    steps = config["steps"]
    with SelfTuning(optimizer, validation_loss, horizon=steps, lr=(1e-6, 1.0)) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            run.backward(training_loss())  # was: loss.backward()
            optimizer.step()
        best = run.best_of(validate)
    tune.report({"loss": best, "final_lr": run.hyperparameters["lr"]})


def main(argv=None):
    """Runs the search, and prints what came of it."""
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of a trial")
    parser.add_argument("--workers", type=int, default=2, help="trials at a time")
    args = parser.parse_args(argv)
    ray.init(num_cpus=args.workers, include_dashboard=False, ignore_reinit_error=True)
    search = OptunaSearch(sampler=GlocalSampler(seed=0), metric="loss", mode="min")
    space = {"lr": tune.loguniform(1e-5, 1e-1), "seed": 0, "steps": args.steps}
    config = tune.TuneConfig(
        search_alg=search, num_samples=args.trials, max_concurrent_trials=args.workers
    )
    results = tune.Tuner(train, param_space=space, tune_config=config).fit()
    best = results.get_best_result("loss", "min")
    print(f"{len(results)} trials, {len(results.errors)} failed")
    print(f"best {best.metrics['loss']:.4f}, from lr {best.config['lr']:.2g}"
          f" to {best.metrics['final_lr']:.2g}")  # fmt: skip


if __name__ == "__main__":
    main()
