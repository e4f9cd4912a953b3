/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_offload.h - an engine that offloads, for the benchmarks: a daemon, a session in another process than
 * the daemon's, KV blocks in GPU memory, and the calls that store and load them.
 *
 * Its memory has twice `blocks` blocks: sources, then as many where loads go.
 */
#ifndef SKVCD_TOOLS_BENCH_OFFLOAD_H
#define SKVCD_TOOLS_BENCH_OFFLOAD_H

#include <stdbool.h>
#include <stdint.h>

#include "client-lib/skvc.h"
#include "gpu/model/report.h"
#include "tools/bench_gpu.h"
#include "tools/bench_kv.h"
#include "tools/demo_daemon.h"

struct offload_options {
	enum bench_gpu_kind kind;
	const char *which;     /* GPU's ordinal, or NULL */
	const char *kv;	       /* dump */
	const char *calibrate; /* another, that the profile is fitted on; NULL: halves of kv */
	const char *socket;    /* of a running daemon, or NULL: one is started */
	const char *library;   /* with the CUDA device, for that daemon; NULL: its own idea */
	const char *settings[DEMO_OVERRIDES_MAX / 2u]; /* more of "section.key=value" for it */
	unsigned settings_count;
	enum kv_shape shape;
	uint32_t block_tokens;
	uint64_t pool_bytes;
	uint32_t blocks;
	uint64_t nvme_bytes,
		nvme_segment_bytes; /* of a tier in that daemon's folder; 0: it has none */
	bool unlocked;		    /* the daemon's memory: for tests */
	bool sleeps;		    /* what waits for a call; else it polls */
	bool events;		    /* stores and loads wait for an interprocess event */
};

struct offload {
	const struct offload_options *o;
	char err[REPORT_BYTES];
	struct report r;
	struct demo_daemon daemon;
	struct bench_gpu gpu;
	struct skvc_session *session;
	uint32_t ns, region, event; /* event: 0: none */
	struct bench_event ipc_event;
	struct kv_dump kv, calibration; /* the latter only when there is one */
	struct kv_tile tile, fit_tile;
	uint64_t raw_bytes;	    /* of a block */
	struct bench_memory memory; /* 2 * blocks of them */
	uint8_t *host;		    /* the same in pinned memory: sources, then what came back */
	uint64_t keys_made;
	uint32_t *indices; /* owned: 0, 1, ... 2 * blocks - 1 */
	double ratio;	   /* raw to stored, after offload_fit() */
	uint64_t fitted_blocks;
};

/* What getopt_long() returns for the options that these benchmarks share; see offload_option(). */
enum offload_letter {
	OFFLOAD_KV = 1000,
	OFFLOAD_CALIBRATE,
	OFFLOAD_DEVICE,
	OFFLOAD_GPU,
	OFFLOAD_GEOMETRY,
	OFFLOAD_BLOCK_TOKENS,
	OFFLOAD_SOCKET,
	OFFLOAD_LIBRARY,
	OFFLOAD_POOL,
	OFFLOAD_UNLOCKED,
	OFFLOAD_EVENTS
};
#define OFFLOAD_OPTIONS_TEXT                                                                                 \
	"  --kv FILE            real KV cache to store (safetensors: k.<layer>, v.<layer>)\n"                \
	"  --calibrate FILE     other KV cache, for the daemon's statistics; without it the first half of\n" \
	"                       --kv is for them and the second half is measured\n"                          \
	"  --device NAME        gpu (default), sim: a GPU played by the CPU, or host: none\n"                \
	"  --gpu N              ordinal of the GPU; 0\n"                                                     \
	"  --geometry NAME      llama (default): 32 layers of 8 x 128; or file: as in --kv\n"                \
	"  --block-tokens N     tokens of a block, 1 to 1024 (16)\n"                                         \
	"  --socket PATH        use the skvcd behind this socket instead of starting one\n"                  \
	"  --library PATH       the CUDA device, for the skvcd that is started\n"                            \
	"  --pool SIZE          its host pool (4G)\n"                                                        \
	"  --unlocked           without locking its memory\n"                                                \
	"  -o KEY=VALUE         another setting of it, section.key=value; may be repeated\n"                 \
	"  --events             stores and loads wait for an interprocess event\n"
#define OFFLOAD_LONG(name, has, letter)            \
	{                                          \
		name, has##_argument, NULL, letter \
	}
#define OFFLOAD_LONG_OPTIONS                                                  \
	OFFLOAD_LONG("kv", required, OFFLOAD_KV),                             \
		OFFLOAD_LONG("calibrate", required, OFFLOAD_CALIBRATE),       \
		OFFLOAD_LONG("device", required, OFFLOAD_DEVICE),             \
		OFFLOAD_LONG("gpu", required, OFFLOAD_GPU),                   \
		OFFLOAD_LONG("geometry", required, OFFLOAD_GEOMETRY),         \
		OFFLOAD_LONG("block-tokens", required, OFFLOAD_BLOCK_TOKENS), \
		OFFLOAD_LONG("socket", required, OFFLOAD_SOCKET),             \
		OFFLOAD_LONG("library", required, OFFLOAD_LIBRARY),           \
		OFFLOAD_LONG("pool", required, OFFLOAD_POOL),                 \
		OFFLOAD_LONG("unlocked", no, OFFLOAD_UNLOCKED),               \
		OFFLOAD_LONG("events", no, OFFLOAD_EVENTS)
struct offload_options offload_defaults(void);
/* c: what getopt_long() returned ('o' too).  0, or -EINVAL after a line on stderr: a bad value;
 * -ENOENT: not one of these. */
int offload_option(struct offload_options *o, int c, const char *value, const char *tool);

/* Each returns 0, or -errno with a line in f->err.  offload_stop() after all of them, also after a
 * failure of offload_start(). */
int offload_start(struct offload *f, const struct offload_options *o);
/* Stores blocks to calibrate on until the daemon has a profile and they shrink; then fills the sources
 * with those to measure on. */
int offload_fit(struct offload *f);
void offload_stop(struct offload *f);

/* New names, a chain. */
void offload_keys(struct offload *f, struct skvc_key *keys, uint32_t count);
/* Begin: sources first.. under these names; or, with a lease, into destination blocks first... */
int offload_store_begin(struct offload *f, const struct skvc_key *keys, uint32_t first,
			uint32_t count, uint64_t *ret_job);
int offload_load_begin(struct offload *f, uint64_t lease, uint32_t first, uint32_t count,
		       uint64_t *ret_job);
int offload_drop_begin(struct offload *f, const struct skvc_key *keys, uint32_t count,
		       uint64_t *ret_job);
/* A completion that says less than success of all `count` blocks. */
int offload_check(struct offload *f, const struct skvc_completion *c, uint32_t count,
		  const char *what);

/* The whole of a call, when nothing else is in flight; times from before it was submitted. */
struct offload_times {
	uint64_t source_free_ns, done_ns;
};
int offload_store(struct offload *f, const struct skvc_key *keys, uint32_t first, uint32_t count,
		  struct offload_times *ret_times, struct skvc_completion *ret);
int offload_load(struct offload *f, uint64_t lease, uint32_t first, uint32_t count,
		 uint64_t *ret_done_ns);
/* All of the names, in host memory. */
int offload_lookup(struct offload *f, const struct skvc_key *keys, uint32_t count,
		   uint64_t *ret_lease, uint64_t *ret_done_ns);
int offload_release(struct offload *f, uint64_t lease);
int offload_drop(struct offload *f, const struct skvc_key *keys, uint32_t count);

/* Raw copies of `count` blocks, in `pieces` of them: sources to pinned memory, or back to destinations.
 * Until all are done. */
int offload_copy(struct offload *f, bool to_device, uint32_t first, uint32_t count, uint32_t pieces,
		 uint64_t *ret_ns);
/* Overwrite destination blocks with what no source is, and look whether they are those sources. */
int offload_clear(struct offload *f, uint32_t first, uint32_t count);
int offload_verify(struct offload *f, uint32_t source, uint32_t destination, uint32_t count);

#endif
