"""Images that are drawn, not tissue: names and files (`generate`), the scene (`tissue`), its picture (`microscope`)."""

from kdtvit_ray.data.synthetic.generate import synthesise

__all__ = ["synthesise"]
