"""The offline trainer: from a Minari dataset to a checkpoint. Never imported by deployment."""
