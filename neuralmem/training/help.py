"""The short help of train.py. Printed without importing Lightning, because `--help` should answer at once."""

HELP = """\
usage: train.py --config FILE [--config FILE ...] [--SECTION.FIELD VALUE ...]

Train a model from a YAML file. Options on the command line win over the files, later files over earlier ones.

examples:
  python train.py --config configs/quickstart.yaml
  python train.py --config configs/titans/mac_170m.yaml --model.depth 24 --trainer.devices 8
  python train.py --config configs/quickstart.yaml --run runs/long --trainer.max_steps 5000
  python train.py --config configs/quickstart.yaml --resume auto

commonest options:
  --config FILE                   a complete experiment; configs/ has them
  --run FOLDER                    where everything is written (default runs/<name of the first config>)
  --resume auto                   go on from the run's newest whole checkpoint, bit for bit; without one, start
  --ckpt_path FOLDER|last         go on from this checkpoint; last: as --resume auto
  --init_from FOLDER|NAME         begin with the weights of a saved model: fine-tuning
  --init_strict false             that model may be another: take each tensor that fits
  --seed_everything N             seed of all random numbers
  --tokens_per_step N             batch in tokens over all devices; sets gradient accumulation

  --model.width N                 width of the residual stream
  --model.depth N                 layers
  --model.pattern '[NAME,...]'    transformer, titans_lmm, titans_mac, titans_mag, titans_mal, hope, hope_attention;
                                  repeated over the depth
  --model.attention.window N      tokens a query sees (null: full attention)
  --model.memory.rule NAME        titans, delta, ttt_linear, ttt_mlp, moneta, yaad, memora, omega, atlas, lact, tnt,
                                  self_modifying, continuum
  --model.memory.chunk_size N     tokens that share one gradient anchor
  --model.model NAME              causal_lm, ttt_e2e

  --optimizer.name NAME           adamw, muon, m3, delta_momentum, deep_momentum
  --optimizer.lr X                peak learning rate
  --optimizer.weight_decay X      decay of matrices
  --optimizer.warmup N            steps of linear warm-up

  --data NAME                     the source of training text; --data.FIELD VALUE sets its fields
  --checkpoint.every N            steps between checkpoints
  --checkpoint.keep N             how many are kept
  --faults.patience N             skipped steps in a row (loss or gradient not finite) that stop the run

  --probes.every N                steps between runs of the probes that a config names
  --report.at_end true|false      write report.html

  --trainer.max_steps N           optimizer steps
  --trainer.max_time DD:HH:MM:SS  time budget; the learning rate then follows the clock
  --trainer.devices N             GPUs or processes
  --trainer.strategy NAME         ddp, fsdp2
  --compute.recompute true        layers computed again in the backward pass: less memory
  --compute.compile true          layers through torch.compile
  --trainer.precision NAME        32-true, bf16-mixed
  --trainer.val_check_interval N  steps between validations
  --trainer.log_every_n_steps N   steps between rows of metrics.csv

more:
  --help all                      every option
  --print_config                  the complete configuration as YAML, to save and edit
  --debug                         show the traceback of an error
"""
