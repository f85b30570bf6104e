"""A LazyConfig: one of Detectron2's own new_baselines, made small, with our heads on request.

`model.roi_heads` is Detectron2's with NaiveSyncBatchNorm in the box head, as new_baselines and
projects/Rethinking-BatchNorm have it; `ours` says what to put in its place.
"""

import os
from pathlib import Path

import detectron2
from detectron2.config import LazyCall as L
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec

from bn_detect import NormalizationBatch
from bn_detect.modeling import BNConvFCHead, BNStandardROIHeads

_baselines = Path(detectron2.__file__).parent / "model_zoo/configs/new_baselines"
_cfg = LazyConfig.load(str(_baselines / "mask_rcnn_R_50_FPN_100ep_LSJ.py"))
model, dataloader, train = _cfg.model, _cfg.dataloader, _cfg.train
optimizer, lr_multiplier = _cfg.optimizer, _cfg.lr_multiplier

_names = os.environ.get("SMALL_LAZY_DATASETS", "coco_2017_train coco_2017_val").split()
dataloader.train.dataset.names, dataloader.test.dataset.names = _names
dataloader.train.total_batch_size, dataloader.train.num_workers = 2, 0
dataloader.train.mapper.augmentations = dataloader.test.mapper.augmentations
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.recompute_boxes = False
dataloader.test.mapper.augmentations[0].short_edge_length = 64
dataloader.test.num_workers = 0

model.backbone.bottom_up.stem.norm = model.backbone.bottom_up.stages.norm = "FrozenBN"
model.backbone.norm = ""
model.backbone.bottom_up.stages.depth = 18
model.backbone.bottom_up.stages.pop("stride_in_1x1")
model.backbone.out_channels = 16
model.proposal_generator.head.in_channels = 16
model.proposal_generator.head.conv_dims = [-1]
model.proposal_generator.post_nms_topk = (32, 16)
heads = model.roi_heads
heads.batch_size_per_image = 16
for _key in ("mask_in_features", "mask_pooler", "mask_head"):
    heads.pop(_key)
heads.box_head.input_shape = ShapeSpec(channels=16, height=7, width=7)
heads.box_head.conv_dims, heads.box_head.fc_dims = [16], [16]
heads.box_predictor.input_shape = ShapeSpec(channels=16)

if os.environ.get("SMALL_LAZY_OURS"):
    heads._target_, heads.box_head._target_ = BNStandardROIHeads, BNConvFCHead
    heads.box_head.conv_norm = "BN"
    heads.box_head.roi_batch = L(NormalizationBatch)(batch="worker")

train.device, train.max_iter, train.amp.enabled, train.eval_period = "cpu", 3, False, 0
optimizer.lr = 0.01
