"""COCO's average precision through pycocotools, and what it says of single detections."""

from ghm.scoring.average_precision import Detection, chance, detect, judge, results, score
from ghm.scoring.judgement import METRICS, STATS, Judgement

__all__ = ["METRICS", "STATS", "Detection", "Judgement", "chance", "detect", "judge", "results", "score"]
