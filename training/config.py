"""Settings shared by the training stages: folders, picture sets, number of processes."""

from pathlib import Path

from training.scenes.dataset import HELD_OUT, Pictures

ROOT = Path(__file__).parents[1]
WORK = ROOT / ".cache" / "demo_model"
SHIPPED = ROOT / "pipelines" / "demo_model"
SHEET = ROOT / "docs" / "demo-model.png"

SMALL = Pictures(WORK, "train", 256, groups=2500)
LARGE = Pictures(WORK, "train", 512, groups=1600, first=500_000)
CORES = 2
TEST = Pictures(WORK, "test", 512, groups=48, first=HELD_OUT)
