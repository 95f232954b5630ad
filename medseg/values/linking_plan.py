"""How detections become objects; a section of the Plan."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from medseg.values.section import Section

LinkingMethod = Literal["flow", "greedy", "hungarian", "nms", "components"]


class LinkWeights(Section):
    """Weights of the log-odds that masks of two slices are one object (`linking.affinity.link_log_odds`).

    `medseg tune-linking` fits them to a cohort.
    """

    #: Per unit of IoU of the masks.
    iou: float = Field(6.0, ge=0)
    #: Per unit of intersection over the smaller mask.
    contained: float = Field(5.0, ge=0)
    #: Per unit of the logarithm of larger over smaller area.
    area: float = Field(-0.15, le=0)
    #: Per diameter (of the larger mask) that the centroids lie apart, beyond half a diameter.
    shift: float = Field(-4.0, le=0)
    #: Per unit by which the lower of the two scores is above 0.5; 0, as scores already count for each detection.
    score: float = Field(0.0, ge=0)
    #: Per unit of agreement with detections of passes along other axes (-1..1), where there are any.
    view: float = Field(0.0, ge=0)


class LinkingPlan(Section):
    """From detections per slice to objects (see `medseg.linking`)."""

    #: ``flow``: the exact optimum; the others are the field's usual ways, for comparison (`linking.baselines`).
    method: LinkingMethod = "flow"
    #: How much of an object may be missing between two slices that show it, mm: a gap of k slices is bridged
    #: when k times the slice spacing is at most this (5 mm slices and 6 mm: one slice).
    gap_mm: float = Field(6.0, ge=0)
    #: IoU of the masks of two slices at which they are as likely the same object as not.
    link_iou: float = Field(0.2, gt=0, lt=1)
    #: The same for masks with an empty slice between them. Lower, as an object moves on and changes in the meantime.
    gap_iou: float = Field(0.1, gt=0, lt=1)
    weights: LinkWeights = LinkWeights()
    #: Detections of one slice and class are one where their masks have this IoU ...
    duplicate_iou: float = Field(0.5, gt=0, le=1)
    #: ... or where this much of the smaller lies in the larger.
    duplicate_overlap: float = Field(0.6, gt=0, le=1)
    #: How often one detection shows two objects (not of a `single` label), and how often two show one. Where the
    #: neighbouring slices suggest it, both readings compete; 0: detections are taken as they are.
    merged_prior: float = Field(0.2, ge=0, lt=1)
    split_prior: float = Field(0.2, ge=0, lt=1)
    #: Branch-and-bound nodes for a group of detections with competing readings; beyond them the best found is taken.
    node_limit: int = Field(10000, ge=1)
    #: A track (not of a `single` label) is cut in two where its area falls below this share of that on either side and
    #: rises again: objects that stand on each other. 0: never. 0.5 is a waist of 0.7 of the diameter. Less counts as
    #: a waist where the widest outlines of the two sides lie apart, more where slices are missing (`linking.waists`).
    waist_ratio: float = Field(0.5, ge=0, le=1)
    #: Two tracks (not of a `single` label) are one where one goes on where the other ends, with slices missing between
    #: them or a few that both have, if the probability that they are is above this (`linking.ends`). 1: never.
    join_ends: float = Field(0.5, ge=0, le=1)
    #: A track of few slices (not of a `single` label) is left out where the probability that it is an object of its
    #: own, not a piece of a longer one and not false, is below this (`linking.pieces`). 0: never.
    keep_short: float = Field(0.5, ge=0, le=1)
    #: Detections of a `single` label scored lower than this are left out: where an organ ends, its neighbour is taken
    #: for it with low scores for many slices. Other labels keep theirs, as each object has to be found on its own.
    single_min_score: float = Field(0.5, ge=0, le=1)
    #: A separate part of a `single` label is kept from this share of the largest part's evidence (score x area).
    part_fraction: float = Field(0.25, gt=0, le=1)
    mask_threshold: float = Field(0.5, gt=0, lt=1)
    #: Standard deviation of the averaging of an object's probabilities along the slice axis, mm; nothing below half
    #: the slice spacing. 0: each slice as it was detected.
    smooth_mm: float = Field(0.0, ge=0)
    #: An object (not of a `single` label) is expected to be this share of its diameter in the plane long;
    #: where it is shorter, up to three slices that should have shown it count 0 in its score. 0: expect nothing.
    length_ratio: float = Field(1.0, ge=0)
    #: Objects scored lower than this (before calibration) are dropped; the score is the mean over the slices that
    #: should show the object, weighted by its diameter in them.
    min_score: float = Field(0.4, ge=0, le=1)
    #: (score, probability that the object is one) knots that `medseg tune-linking` fits, both ascending; the score of
    #: an object is read off the line through them. None: scores stay as they are.
    calibration: tuple[tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]], ...] = ()
    #: Joins of less confidence than this (log-odds) are listed with the result.
    doubtful_join: float = Field(1.0, ge=0)
    #: Objects shorter than this along the slice axis are dropped, mm.
    min_extent_mm: float = Field(0.0, ge=0)
    #: Smallest volume of an object per label id, ml; smaller ones are dropped.
    min_volume_ml: dict[int, float] = {}

    @model_validator(mode="after")
    def _check(self) -> "LinkingPlan":
        for column in zip(*self.calibration, strict=True):
            if list(column) != sorted(column):
                raise ValueError(f"calibration {self.calibration}: expected ascending scores and probabilities")
        return self
