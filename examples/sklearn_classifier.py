"""A compressed model as a scikit-learn classifier: the budget is a parameter like any other.

GridSearchCV compresses on each training fold, judges on the other one, and refits the smallest
model that is within a point of the best. Pipelines, cross-validation and metrics take the same
class; any torch module and any method will do.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.metrics import classification_report
from sklearn.model_selection import GridSearchCV, train_test_split
from torch import nn
from torch.nn import functional

import compressor


class CompressedClassifier(ClassifierMixin, BaseEstimator):
    """A trained torch classifier, compressed on the data that it is fitted to.

    Args:
        model: The dense module, whose logits [B, C] stand for classes 0 … C − 1; never changed.
        budget: What may be kept, for instance ``"layers=50%"``; None keeps all.
        method: Registered method.
        batch_size: Samples in a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        budget: str | None = None,
        method: str = "nc1",
        batch_size: int = 128,
    ) -> None:
        self.model = model
        self.budget = budget
        self.method = method
        self.batch_size = batch_size

    def fit(self, X: np.ndarray, y: np.ndarray) -> Self:
        """Compress the model on samples and their labels."""
        self.classes_ = np.unique(y)
        self.model_ = self.model.eval()
        if self.budget is not None:
            inputs, labels = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
            batches = list(
                zip(inputs.split(self.batch_size), labels.split(self.batch_size), strict=True)
            )
            done = compressor.compress(self.model, batches, self.budget, method=self.method)
            self.model_ = done.model
        self.parameters_ = sum(p.numel() for p in self.model_.parameters())
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        """Return the probability of each class, [N, C]."""
        with torch.inference_mode():
            parts = torch.as_tensor(X, dtype=torch.float32).split(self.batch_size)
            return torch.cat([self.model_(part).softmax(1) for part in parts]).numpy()

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the likeliest class of each sample."""
        return self.classes_[self.predict_proba(X).argmax(1)]


def trained(X: np.ndarray, y: np.ndarray) -> nn.Module:
    """Return a small network trained on the samples."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    inputs, labels = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model


def smallest_within_a_point(results: dict[str, Any]) -> int:
    """Return the candidate with the smallest budget whose accuracy is within a point of the best.

    Candidates are listed from the largest budget down.
    """
    accuracy = results["mean_test_score"]
    return int(np.flatnonzero(accuracy >= accuracy.max() - 0.01)[-1])


def main() -> None:
    """Choose a budget by cross-validation, and report on samples that nobody saw."""
    X, y = load_digits(return_X_y=True)
    X_train, X_test, y_train, y_test = train_test_split(
        X / 16, y, test_size=600, random_state=0, stratify=y
    )
    search = GridSearchCV(
        CompressedClassifier(trained(X_train, y_train)),
        {"budget": [None, "layers=60%", "layers=40%", "layers=25%"]},
        cv=3,
        refit=smallest_within_a_point,
    )
    search.fit(X_train, y_train)
    for budget, accuracy in zip(
        search.cv_results_["param_budget"], search.cv_results_["mean_test_score"], strict=True
    ):
        print(f"{budget or 'dense':>12}  accuracy {accuracy:.4f}")
    best = search.best_estimator_
    print(f"chosen {best.budget}, {best.parameters_:,} parameters")
    print(classification_report(y_test, best.predict(X_test), digits=3))


if __name__ == "__main__":
    main()
