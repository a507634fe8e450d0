"A study that is far too small to say anything: for tests of the command line."

TINY = """
name: tiny
title: Far too small
source: lab
train: lab-nli
target: lab-nli
intermediate: [{task: lab-paws}, {task: lab-qqp}]
lab: {text_per_language: 60, parallel_rows: 60, nli_train: 300, paws_train: 200, qqp_train: 200, dev: 30, test: 60}
seeds: [0, 1]
pretrain: {vocab: 600, steps: 30, batch: 16, contrast_batch: 8, threads: 1}
intermediate_tokens: 2000
target_tokens: 2000
evaluation: {clean: 15, noise: 6, draws: 1, adaptive: 6, adaptive_languages: [en], queries: 4}
"""
