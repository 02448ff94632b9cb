"""Paints all picture sets of the recipe."""

from benchmarks.demo_model.recipe import LARGE, SMALL, TEST


def main() -> None:
    for pictures in (TEST, LARGE, SMALL):
        pictures.paint_all()
        print(f"painted {pictures.count} pictures: {pictures.path.name}", flush=True)


if __name__ == "__main__":
    main()
