from optuna_glocal import GlocalSampler


__all__ = ["GlocalSampler"]
