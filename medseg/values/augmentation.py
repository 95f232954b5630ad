"""How training samples are changed at random; a section of the Plan."""

from pydantic import Field, model_validator

from medseg.values.section import Section


class AugmentationPlan(Section):
    """Ranges of the random changes; a share is that of the samples which a change is made to, 0 switches it off.

    Image and masks move together. Intensities are those of the network's input: -1..1 within a window, or standard
    deviations. Mirroring and rotation, which depend on whether anatomy has a right way up, are fields of
    ``training`` beside it.
    """

    #: Rows and columns are each scaled by up to this share, up or down.
    zoom: float = Field(0.15, ge=0, lt=1)
    #: Rows are shifted along columns by up to this share of their distance from the centre, and columns along rows.
    shear: float = Field(0.05, ge=0, le=0.5)
    #: Points eight to a crop are displaced by up to this share of their distance, and what lies between them smoothly
    #: with them; below 0.4 nothing ever folds over (Choi and Lee 2000).
    elastic_share: float = Field(0.2, ge=0, le=1)
    elastic: float = Field(0.15, ge=0, le=0.4)
    #: Values times 1 - contrast .. 1 + contrast.
    contrast_share: float = Field(0.5, ge=0, le=1)
    contrast: float = Field(0.1, ge=0, lt=1)
    #: Values plus up to this, or minus.
    brightness_share: float = Field(0.5, ge=0, le=1)
    brightness: float = Field(0.1, ge=0)
    #: The range of a sample's values, taken to 0..1, to a power between these.
    gamma_share: float = Field(0.2, ge=0, le=1)
    gamma: tuple[float, float] = (0.8, 1.25)
    #: Sampled down by a factor between 1 and this, and up again.
    low_resolution_share: float = Field(0.1, ge=0, le=1)
    low_resolution: float = Field(2.0, ge=1)
    #: Gaussian of a standard deviation between these, pixels.
    blur_share: float = Field(0.1, ge=0, le=1)
    blur_pixels: tuple[float, float] = (0.3, 0.8)
    #: Gaussian noise of a standard deviation between 0 and this.
    noise_share: float = Field(0.2, ge=0, le=1)
    noise: float = Field(0.05, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "AugmentationPlan":
        for name, (low, high) in (("gamma", self.gamma), ("blur_pixels", self.blur_pixels)):
            if not 0 < low <= high:
                raise ValueError(f"{name} {low, high}: expected (low, high) with 0 < low <= high")
        return self
