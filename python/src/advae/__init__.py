"""Evaluate defences of image classifiers against adversarial examples, from Python.

The attacks and the measurements are those of the program ``advae-host``; the model stays where it is::

    import advae

    result = advae.evaluate(model, attacks=["pgd", "autoattack"], dataset="cifar10-test", data_dir="data", epsilon="8/255")
    print(result)
    result.robust_accuracy
"""

from ._host import AdvaeError, Cell, Interval, Result, classifier, evaluate, purifier, serve

__all__ = ["AdvaeError", "Cell", "Interval", "Result", "classifier", "evaluate", "purifier", "serve"]
__version__ = "0.1.0"
