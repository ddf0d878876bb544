"""What a program does with an artifact: `python examples/use_winner.py FOLDER IMAGE...`"""

import sys

import vitrail

folder, *images = sys.argv[1:]
predictor = vitrail.load(folder)
for image, prediction in zip(images, predictor.predict(images), strict=True):
    print(f"{image}: {prediction.label}, {prediction.probability:.0%}")
