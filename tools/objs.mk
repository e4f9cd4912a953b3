# SPDX-License-Identifier: Apache-2.0
SKVC_BENCH_SRCS := \
	tools/bench_codec_gpu.c \
	tools/bench_codec_model.c \
	tools/bench_coder.c \
	tools/bench_cost.c \
	tools/bench_cuda.c \
	tools/bench_engine.c \
	tools/bench_engine_loops.c \
	tools/bench_fit.c \
	tools/bench_frontier_svg.c \
	tools/bench_gpu.c \
	tools/bench_gpu_cuda.c \
	tools/bench_gpu_host.c \
	tools/bench_gpu_sim.c \
	tools/bench_kv.c \
	tools/bench_model.c \
	tools/bench_model_point.c \
	tools/bench_offload.c \
	tools/bench_predictor.c \
	tools/bench_samples.c \
	tools/demo_daemon.c \
	tools/model_threads.c \
	tools/output.c \
	tools/progress.c \
	tools/replay_daemon.c \
	tools/replay_data.c \
	tools/replay_data_table.c \
	tools/replay_log.c \
	tools/replay_policies.c \
	tools/replay_promote.c \
	tools/replay_table.c \
	tools/replay_trace.c \
	tools/skvc_bench.c \
	tools/skvc_bench_calibrate.c \
	tools/skvc_bench_codec.c \
	tools/skvc_bench_frontier.c \
	tools/skvc_bench_ipc.c \
	tools/skvc_bench_model.c \
	tools/skvc_bench_neighbour.c \
	tools/skvc_bench_nvme.c \
	tools/skvc_bench_replay.c \
	tools/skvc_bench_tier.c \
	tools/skvcctl_bus.c \
	tools/skvcctl_link.c
SKVC_DEMO_SRCS := \
	tools/demo_cache.c \
	tools/demo_daemon.c \
	tools/demo_run.c \
	tools/demo_tour.c \
	tools/model.c \
	tools/model_kernels.c \
	tools/model_kernels_avx2.c \
	tools/model_threads.c \
	tools/model_weights.c \
	tools/output.c \
	tools/progress.c \
	tools/skvc_demo.c \
	tools/tokenizer.c \
	tools/tokenizer_split.c \
	tools/tokenizer_unicode.c
SKVC_KVDUMP_SRCS := \
	tools/model.c \
	tools/model_kernels.c \
	tools/model_kernels_avx2.c \
	tools/model_threads.c \
	tools/model_weights.c \
	tools/npy.c \
	tools/progress.c \
	tools/skvc_kvdump.c \
	tools/tokenizer.c \
	tools/tokenizer_split.c \
	tools/tokenizer_unicode.c
SKVCCTL_SRCS := \
	tools/output.c \
	tools/skvcctl.c \
	tools/skvcctl_bus.c \
	tools/skvcctl_change.c \
	tools/skvcctl_doctor.c \
	tools/skvcctl_explain.c \
	tools/skvcctl_facts.c \
	tools/skvcctl_json.c \
	tools/skvcctl_link.c \
	tools/skvcctl_plan.c \
	tools/skvcctl_screen.c \
	tools/skvcctl_table.c \
	tools/skvcctl_top.c
