"""The demonstration: one command that shows what temporal scales do, on the embedded model."""

from tdquant.lab.demo.run import DemoResult, Settings, run_demo

__all__ = ["DemoResult", "Settings", "run_demo"]
