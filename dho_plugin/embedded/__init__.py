"""A small engine with Dassl's names and behaviour, for where Dassl itself is not installed.

It covers what the trainers here use: registries, configuration, datasets, loaders, labelled and semi-supervised
training, evaluation, optimisers, schedules, checkpoints and the log. Take the names from `dho_plugin.host`, which
chooses between this engine and real Dassl.
"""
