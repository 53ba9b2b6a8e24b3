"""Data sets with several labels per image, their transforms, sampler and LightningDataModule.

Import from the modules: ``digits`` (embedded, nothing to download), ``voc`` (Pascal VOC format), ``coco`` (COCO
format), ``transforms`` (sections 3.5 and 4.2.2 of the paper), ``sampler``, ``datamodule``, ``images`` (files to RGB),
``errors``. They need the extra ``train`` (Pillow, torchvision, scikit-learn, lightning), each of them only what it
uses.

Labels are int8 [M, C]: 1 present, 0 only difficult (or, on request, only crowd) objects, -1 absent.
"""
