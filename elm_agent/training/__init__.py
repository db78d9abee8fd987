"""Learning: the mathematics of a step as pure functions, and the trainer that reads like the paper's algorithm.

Knows the model's network; knows nothing of stores, jobs or routes.
"""

from elm_agent.training.choice import RecipeTrainer
from elm_agent.training.grpo import GrpoTrainer

__all__ = ["GrpoTrainer", "RecipeTrainer"]
