"""The evaluator around a Trainer of transformers; imported only where a recipe or a program asks for it."""
