# make setup   the environment in .venv          make test    all tests
# make demo    the whole way on drawn people     make check   style, types
# make results the tables of docs/results.md on drawn people; results-quick: a slice in 20 minutes
# make recipes learning rates, batches and parametrisations in equal time; generators of three lengths
# make real    Table 3 on Market-1501 at half its size, in a day and a half of a core (data/market1501)
# make speed   sampling, training and single parts beside plain references and, with AUTHORS=DIR, a
#              clone of ankanbhunia/PIDM
# make slow    the tests that take minutes or much memory
# make test-faults   N kills, full disks, bad inputs of each kind, and a table
# make paper   the paper's network and Table 3: eight GPUs, a week; WEIGHTS=FILE: ImageNet's, if elsewhere
# make bundled trains the bundled model again (docs/results.md says how the present one was made)
# SCRATCH=1 demo: PIDM from nothing.  PY=python3 SETUP=0: an interpreter as it is.
SETUP ?= 1
PY ?= .venv/bin/python
SCRATCH ?= 0
N ?= 20
WEIGHTS ?= $(HOME)/.cache/torch/hub/checkpoints/resnet50-19c8e357.pth

# Without bytecode files every tool would compile torch's Python again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup generator pretrain demo results results-quick recipes speed real test test-faults slow check bundled paper
ifeq ($(SETUP),1)
READY = .venv/ready
endif

setup: .venv/ready

.venv/ready: requirements.lock pyproject.toml setup.cfg
	python3 -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv/bin/uv pip sync --quiet --python .venv/bin/python requirements.lock
	.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
	touch $@

ifeq ($(SCRATCH),1)
RUN = runs/toy_scratch
NAME = demo_scratch
FOLDERS = data/scratch
TRAIN = --train.steps 600 --train.cosine --train.ema-decay 0.98
else
RUN = runs/toy_demo
NAME = demo
FOLDERS = data
TRAIN = --train.init toy_market --train.steps 150 --train.lr 3e-4 --train.cosine --train.ema-decay 0.95
endif

generator: $(READY)
	$(PY) tools/make_toy_market.py --preset demo --out data/toy_market
	$(PY) tools/train_pidm.py --config configs/toy_market.yaml --data data/toy_market --out $(RUN) --train.warmup-steps 20 $(TRAIN)

demo: generator
	$(PY) tools/synthesize.py --ratio 0.4 --run $(RUN) --out $(FOLDERS)/toy_market_pidm40
	$(PY) tools/reproduce_table.py reid --config configs/demo.yaml --run $(RUN) --name $(NAME) --folders $(FOLDERS)

REID = $(PY) tools/reproduce_table.py reid --config configs/reid_toy.yaml

# Rows of one changed setting: what the plan chooses, how many images, how they are trained on, a
# strict generator that began with random weights, the bundled model as it is and its students.
VARIANTS = PIDM-strict-balanced=plan.pose_policy=balanced,PIDM-strict-scale=plan.same_scale=1.2
VARIANTS := $(VARIANTS),PIDM-strict-cameras=plan.source_policy=cameras
VARIANTS := $(VARIANTS),PIDM-strict-x1=per_image=1,PIDM-strict-x2=per_image=2,PIDM-strict-x8=per_image=8
VARIANTS := $(VARIANTS),PIDM-strict-half=policy.half_real=true,PIDM-strict-last=policy.real_last=0.2
VARIANTS := $(VARIANTS),PIDM-strict-scratch=strict=configs/toy_strict_scratch.yaml
VARIANTS := $(VARIANTS),PIDM-teacher=run=toy_market,PIDM-student=run=runs/toy_student_half
VARIANTS := $(VARIANTS),PIDM-student-one=run=runs/toy_student_half1
GENERATORS = PIDM-after-150=run=runs/generator_150,PIDM-after-600=run=runs/recipe_fast_y0
GENERATORS := $(GENERATORS),PIDM-after-2400=run=runs/generator_2400
GENERATORS := $(GENERATORS),PIDM-bundled=run=toy_market,PIDM-student-bundled=run=toy_market_student
DEVELOPMENT = $(PY) tools/reproduce_table.py reid --config configs/demo.yaml --data data/toy_dev --run toy_market --rows Standard,Standard-same-steps,PIDM-paper
TABLES = $(addprefix results/,reid_toy reid_toy_128 reid_toy_world2 reid_toy_ratios toy_dev_3_steps toy_dev_2_steps toy_hardness demo)
REAL = $(addprefix results/reid_,drawn market1501_half market1501_half_40 market1501_half_40_paper market1501_half_20 market1501_half_again market1501_half_long market1501_half_real)
STEPS = :50 :20 :10 :6 :4 :3 :2 :1 :10:dpm++ :6:dpm++ :4:dpm++ :3:dpm++
STEPS += :20:none :10:none :6:none :3:none :2:none :1:none :3:dcf :10:dcf
STEPS += :10:0-0.5 :10:0.5-1 :6:0-0.5 :6:0.5-1 :4:0-0.5 :4:0.5-1
COMMA := ,
FRONT = $(patsubst $(COMMA)%,%,$(subst $() ,,$(addprefix $(COMMA)toy_market,$(STEPS))))
# Done but for what is listed, such as figures whose weights are not on this machine.
PARTLY = || test $$? -eq 1
publish = mkdir -p docs/results/$(1) && cp $(2) docs/results/$(1)/figures.json
DISTILL = $(PY) tools/distill.py --config configs/toy_student.yaml
LARGE = --name reid_toy_128 --student.height 128 --student.width 64

results: demo pretrain recipes
	$(DISTILL) --out runs/toy_student_half
	$(DISTILL) --teacher runs/toy_student_half --steps 2 --teacher-steps 2 --train.steps 150 --out runs/toy_student_half2
	$(DISTILL) --teacher runs/toy_student_half2 --steps 1 --teacher-steps 2 --train.steps 150 --out runs/toy_student_half1
	$(REID)
	$(REID) --ratios 0.2 --seeds 0,1,2 --rows Standard,Standard-same-steps,PIDM-strict,PIDM-strict-fly --variants $(VARIANTS)
	$(REID) $(LARGE)
	$(PY) tools/make_toy_market.py --preset demo --seed 2026 --out data/toy_world2
	$(PY) tools/train_pidm.py --config configs/toy_market.yaml --data data/toy_world2 --out runs/toy_world2 --train.warmup-steps 20 $(TRAIN)
	$(REID) --name reid_toy_world2 --data data/toy_world2 --run runs/toy_world2 --folders data/world2 --ratios 0.2 --seeds 0,1,2
	$(REID) --name reid_toy_ratios --ratios 0.2 --seeds 0,1,2 --rows Standard,Standard-same-steps,PIDM-strict --variants $(GENERATORS)
	$(REID) --name reid_toy_ratios --ratios 0.6,0.8 --seeds 0,1,2 --rows Standard,Standard-same-steps,PIDM-strict
	$(REID) --name reid_toy_ratios --ratios 1.0 --seeds 0,1,2 --rows Standard,Standard-same-steps --variants PIDM-strict-x1=per_image=1
	$(PY) tools/make_toy_market.py --preset demo --test-people development --out data/toy_dev
	$(DEVELOPMENT) --name toy_dev_3_steps --folders data/dev_3_steps
	$(DEVELOPMENT) --name toy_dev_2_steps --folders data/dev_2_steps --sample.steps 2 --sample.w-p 1.5 --sample.w-s 1.2
	$(PY) tools/reproduce_table.py reid --config configs/toy_hardness.yaml
	$(PY) tools/reproduce_table.py ablation --config configs/toy_ablation.yaml --features reid --weights "$$(ls -tr results/toy_hardness/standard/*.safetensors | head -1)" --reid-size 128,64 $(PARTLY)
	$(call publish,toy_ablation,results/toy_ablation/table.json)
	$(PY) tools/probe_generator.py --guidance chain --steps 2,3 --w-p 1.5,2 --w-s 1.2,1.5 --pairs 120 --json results/probe.json
	$(call publish,probe,results/probe.json)
	$(COMPARE) --models $(FRONT) --json results/front.json --plot docs/results/front/plot.png
	$(call publish,front,results/front.json)
	$(PY) tools/compare_models.py --models toy_market:50,runs/toy_student_half,runs/toy_student_half2,runs/toy_student_half1,toy_market_student --pairs 120 --seeds 42 --json results/students.json
	$(call publish,students,results/students.json)
	$(PY) tools/render_pairs.py --run toy_market --data data/toy_world2 --count 1000
	$(PY) tools/render_pairs.py --run toy_market_student --data data/toy_world2 --count 1000
	$(PY) tools/render_pairs.py --baseline source --data data/toy_world2 --count 1000 --out results/pairs/toy_source
	$(PY) tools/reproduce_table.py images --config configs/toy_pairs.yaml --weights "$$(ls -tr results/reid_toy_world2/standard/*.safetensors | head -1)" $(PARTLY)
	$(call publish,toy_pairs,results/toy_pairs/table.json)
	$(PY) tools/report.py $(TABLES) --publish docs/results

TRAIN_SHORT = $(PY) tools/train_pidm.py --config configs/toy_market.yaml --train.ema-decay 0.99 --train.warmup-steps 50 --train.sample-every 0
SLOW = --train.lr 2e-5 --train.batch-size 8 --no-train.cosine --train.steps 1230
FAST = --train.lr 1e-3 --train.batch-size 32
COMPARE = $(PY) tools/compare_models.py --pairs 120 --seeds 2
RUNS = runs/recipe_slow_eps:3,runs/recipe_slow_eps:20,runs/recipe_slow_y0:3,runs/recipe_slow_y0:20
RUNS := $(RUNS),runs/recipe_fast_eps:3,runs/recipe_fast_eps:20,runs/recipe_fast_y0:3,runs/recipe_fast_y0:20

recipes: pretrain
	$(TRAIN_SHORT) $(SLOW) --diffusion.prediction eps --out runs/recipe_slow_eps
	$(TRAIN_SHORT) $(SLOW) --out runs/recipe_slow_y0
	$(TRAIN_SHORT) $(FAST) --train.steps 600 --diffusion.prediction eps --out runs/recipe_fast_eps
	$(TRAIN_SHORT) $(FAST) --train.steps 600 --out runs/recipe_fast_y0
	$(TRAIN_SHORT) $(FAST) --train.steps 150 --out runs/generator_150
	$(TRAIN_SHORT) $(FAST) --train.steps 2400 --out runs/generator_2400
	$(COMPARE) --models toy_market,$(RUNS) --json results/recipes.json
	$(COMPARE) --models toy_market,toy_market_student,runs/generator_150,runs/recipe_fast_y0,runs/generator_2400 --json results/generators.json
	$(call publish,recipes,results/recipes.json)
	$(call publish,generators,results/generators.json)

results-quick: generator
	$(REID) --ratios 0.2 --seeds 0 --rows Standard,Standard-same-steps,PIDM-strict

speed: $(READY)
	OMP_NUM_THREADS=1 $(PY) tools/benchmark.py --json results/speed.json
	OMP_NUM_THREADS=1 $(PY) tools/benchmark_parts.py --authors "$(AUTHORS)" --json results/parts.json

real: $(READY)
	$(PY) tools/make_toy_market.py --out data/drawn_reid --seed 1 --train-people pretrain --test-people development --train-identities 500 --train-images 12000
	$(PY) tools/reproduce_table.py reid --config configs/reid_drawn.yaml
	$(PY) tools/train_pidm.py --config configs/market1501_half.yaml --out runs/market1501_half
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --ratios 0.4 --seeds 0,1 --rows Standard,Standard-same-steps,PIDM-strict
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --ratios 0.4 --seeds 0 --rows Standard,Standard-same-steps,Standard-same-steps-erasing
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_40 --ratios 0.4 --seeds 0,1,2 --rows Standard,Standard-same-steps,PIDM-strict,real-instead $(PARTLY)
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_40_paper --ratios 0.4 --seeds 0,1,2 --rows Standard,Standard-same-steps,Standard-same-steps-erasing,PIDM-strict,PIDM-paper,real-instead $(PARTLY)
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_40_paper --ratios 0.4 --seeds 0,1,2 --rows Standard,PIDM-strict-selection,PIDM-paper-selection --variants PIDM-strict-long=strict=configs/market1501_half_strict_long.yaml
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_20 --ratios 0.2 --seeds 0,1,2 --rows Standard,Standard-same-steps,Standard-same-steps-erasing,PIDM-strict,PIDM-strict-selection,PIDM-paper,PIDM-paper-selection
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_20 --ratios 0.2 --seeds 0 --rows Standard --variants PIDM-strict-long=strict=configs/market1501_half_strict_long.yaml
	$(PY) tools/train_pidm.py --config configs/market1501_128.yaml --out runs/market1501_128
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_20 --ratios 0.2 --seeds 0 --rows Standard --variants PIDM-paper-128=run=runs/market1501_128
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_again --ratios 0.4 --seeds 0 --rows Standard,Standard-same-steps,PIDM-strict
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_long --ratios 0.4 --seeds 0 --rows Standard,Standard-same-steps,PIDM-strict --student.finetune.steps 800
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_real --ratios 0.4 --seeds 0 --rows Standard,Standard-same-steps,real-instead,PIDM-strict --variants PIDM-strict-x1=per_image=1 $(PARTLY)
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501_half.yaml --name reid_market1501_half_real --ratios 0.2 --seeds 0 --rows Standard,Standard-same-steps,real-instead $(PARTLY)
	$(PY) tools/render_pairs.py --run runs/market1501_half
	$(PY) tools/render_pairs.py --run runs/market1501_128
	$(PY) tools/render_pairs.py --baseline source
	$(PY) tools/render_pairs.py --baseline pose
	$(PY) tools/render_pairs.py --run runs/strict/reid_market1501_half_real40_seed0 --out results/pairs/strict40
	$(PY) tools/reproduce_table.py images --config configs/market1501_half_images.yaml --weights "$$(ls -tr results/reid_market1501_half_real/standard/*.safetensors | head -1)" $(PARTLY)
	$(PY) tools/reproduce_table.py images --config configs/market1501_128_images.yaml --weights "$$(ls -tr results/reid_market1501_half_20/standard/*.safetensors | head -1)" $(PARTLY)
	$(call publish,market1501_half_images,results/market1501_half_images/table.json)
	$(call publish,market1501_128_images,results/market1501_128_images/table.json)
	$(PY) tools/report.py $(REAL) --publish docs/results

test: $(READY)
	$(PY) -m pytest

test-faults: $(READY)
	PYTHONPATH=tests $(PY) -m faults $(N)

slow: $(READY)
	$(PY) -m pytest -m slow

check: $(READY)
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy --strict pidm_core pidm_reid tools

paper: $(READY) $(WEIGHTS)
	$(PY) -m accelerate.commands.launch tools/train_pidm.py --config configs/market1501.yaml --out runs/paper
	$(PY) tools/reproduce_table.py reid --config configs/reid_market1501.yaml --name paper --run runs/paper --folders data/paper --ratios 0.2,0.4,0.6,0.8,1.0 --rows Standard,Standard-same-steps,PIDM-paper --student.weights $(WEIGHTS)

pretrain: $(READY)
	$(PY) tools/make_toy_market.py --out data/toy_pretrain --seed 1 --train-people pretrain --test-people development --train-identities 3000 --train-images 12000

bundled: pretrain
	OMP_NUM_THREADS=1 $(PY) -m torch.distributed.run --standalone --nproc-per-node 2 tools/train_pidm.py --config configs/toy_market.yaml --out runs/toy_pretrain
	$(PY) -c "from pathlib import Path; from pidm_core.checkpoint import ASSETS, bundle; print(bundle(Path('runs/toy_pretrain'), ASSETS / 'toy_market'))"
	$(DISTILL) --out runs/toy_student_half
	$(PY) -c "from pathlib import Path; from pidm_core.checkpoint import ASSETS, bundle; print(bundle(Path('runs/toy_student_half'), ASSETS / 'toy_market_student', base='toy_market', limit=700_000))"
