/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl.h - what skvcctl knows of a daemon: one picture, fetched over D-Bus, then printed as tables or
 * as JSON.  skvcctl_bus.c fetches, skvcctl_table.c and skvcctl_json.c print.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_H
#define SKVCD_TOOLS_SKVCCTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define SKVCCTL_DEFAULT_BUS "/run/skvcd/bus"
#define SKVCCTL_ERR_BYTES 512u
#define SKVCCTL_STATS_MAX 512u /* more entries than this are not ours */
#define SKVCCTL_ROWS_MAX 4096u

enum skvcctl_exit { SKVCCTL_OK = 0, SKVCCTL_FAILURE = 1, SKVCCTL_USAGE = 2, SKVCCTL_NO_DAEMON = 3 };

enum skvcctl_kind { SKVCCTL_COUNTER, SKVCCTL_GAUGE, SKVCCTL_REASON, SKVCCTL_LATENCY };

struct skvcctl_stat {
	enum skvcctl_kind kind;
	char name[64]; /* without "reason." or "latency." */
	uint64_t value;
};

struct skvcctl_namespace {
	uint32_t id, block_tokens, segments_count, profile_version, profile_bits_milli;
	char tenant[32], model[256], digest[65];
	uint64_t block_raw_bytes, blocks, raw_bytes, coded_bytes, hits, misses;
};

struct skvcctl_profile {
	uint32_t ns, version; /* version 0: the namespace has none yet */
	uint32_t lookback;    /* 0: `channel` only; else `layer`, looking back one less */
	uint32_t rotary_pairs;
	char tenant[32], model[256], digest[17], state[16];
	uint64_t bytes, tokens, expected_milli, measured_milli, blocks;
	uint32_t model_part; /* its model is loaded: 1, a copy; 2, a draft; else 0 */
};

struct skvcctl_model {
	char name[65], folder[4096], state[16], err[640], digest[65];
	uint32_t layers, vocab; /* 0: not loaded */
};

struct skvcctl_session {
	uint32_t id, pid, uid, jobs, leases;
	char tenant[32], name[64], role[16];
	uint64_t ops, store_blocks, load_blocks, lookup_blocks, age_ns;
};

struct skvcctl_tenant {
	char name[32];
	uint64_t charged_bytes, quota_bytes;
};

struct skvcctl_text { /* what a counter, a gauge or a reason means */
	char name[64], kind[16], unit[16], text[160];
};

struct skvcctl_rate { /* of the planner */
	char name[48];
	uint64_t bytes_per_s, samples; /* samples 0: assumed */
};

struct skvcctl_way { /* to code the blocks of a namespace */
	uint32_t ns;
	char tenant[32], model[256], speculator[16];
	uint64_t prefill_tokens_per_s;			 /* 0: its engine has not said */
	uint64_t ratio_milli;				 /* coded / raw; not 0 */
	uint64_t host_milli, nvme_milli;		 /* shares of what is wanted that fit */
	uint64_t host_ns, nvme_ns, gone_ns, expected_ns; /* of a block */
	int assumed, chosen;
};

struct skvcctl_place { /* what becomes of a namespace's blocks */
	uint32_t ns;
	int dropped;  /* when host memory is short; else written to NVMe, where there is one */
	int promoted; /* from there, when asked for; else left to the engine */
	uint64_t nvme_ns, host_ns, prefill_ns;
};

struct skvcctl_picture {
	char version[32], health[32], status[256];
	uint64_t ping_ns;
	struct skvcctl_stat *stats; /* owned, as all below */
	size_t stats_count;
	struct skvcctl_namespace *namespaces;
	size_t namespaces_count;
	struct skvcctl_profile *profiles;
	size_t profiles_count;
	struct skvcctl_session *sessions;
	size_t sessions_count;
	struct skvcctl_tenant *tenants;
	size_t tenants_count;
	struct skvcctl_model *models;
	size_t models_count;
	struct skvcctl_rate *rates;
	size_t rates_count;
	struct skvcctl_way *ways;
	size_t ways_count;
	struct skvcctl_place *places;
	size_t places_count;
	struct skvcctl_text *texts;
	size_t texts_count;
};

struct skvcctl_source {
	const char *path; /* of the daemon's own bus socket */
	bool system;	  /* the system bus instead */
};

/* What to fetch; may be combined. */
#define SKVCCTL_GET_VERSION 1u /* version, health, status, ping */
#define SKVCCTL_GET_STATS 2u
#define SKVCCTL_GET_NAMESPACES 4u
#define SKVCCTL_GET_SESSIONS 8u
#define SKVCCTL_GET_TENANTS 16u
#define SKVCCTL_GET_ALL 31u
#define SKVCCTL_GET_PROFILES 32u /* not part of ALL: an older daemon has no such method */
#define SKVCCTL_GET_MODELS 64u	 /* nor this */

#define SKVCCTL_GET_TEXTS 128u /* nor this */
#define SKVCCTL_GET_PLAN 256u  /* nor this */

/* Returns an exit code; on anything but OK, one line in err that says what to do. */
enum skvcctl_exit skvcctl_fetch(const struct skvcctl_source *source, unsigned what,
				struct skvcctl_picture *ret, char *err, size_t err_bytes);
void skvcctl_picture_deinit(struct skvcctl_picture *p);
/* The daemon begins to load it; SKVCCTL_GET_MODELS tells how that ends. */
enum skvcctl_exit skvcctl_model_add(const struct skvcctl_source *source, const char *name,
				    const char *folder, char *err, size_t err_bytes);
enum skvcctl_exit skvcctl_model_remove(const struct skvcctl_source *source, const char *name,
				       char *err, size_t err_bytes);
/* These are root's and the daemon's own user's. */
enum skvcctl_exit skvcctl_set_quota(const struct skvcctl_source *source, const char *tenant,
				    uint64_t bytes, char *err, size_t err_bytes);

#define SKVCCTL_NS_ANY UINT32_MAX

struct skvcctl_evicted {
	uint64_t blocks, bytes; /* that went */
	uint64_t kept;		/* blocks that somebody holds */
};

/* tenant "": anybody's. */
enum skvcctl_exit skvcctl_evict(const struct skvcctl_source *source, const char *tenant,
				uint32_t ns, struct skvcctl_evicted *ret, char *err,
				size_t err_bytes);
#define SKVCCTL_FOUND_MAX 64u

struct skvcctl_found {
	uint32_t ns, position, holders, children;
	char where[16], speculator[16];
	int on_nvme;
	uint64_t record_bytes, pinned_ns, restore_ns, host_ns, prefill_ns;
};

/* Where the blocks of a key are: hexadecimal, in this group. */
enum skvcctl_exit skvcctl_find(const struct skvcctl_source *source, const char *key, uint32_t group,
			       struct skvcctl_found ret[SKVCCTL_FOUND_MAX], size_t *ret_count,
			       char *err, size_t err_bytes);
enum skvcctl_exit skvcctl_drain(const struct skvcctl_source *source, bool on, char *err,
				size_t err_bytes);
/* A line for each key that changed, or waits for a restart. */
enum skvcctl_exit skvcctl_reload(const struct skvcctl_source *source, char *ret_text,
				 size_t text_bytes, char *err, size_t err_bytes);
/* What Prometheus would read: owned text, as the daemon wrote it. */
enum skvcctl_exit skvcctl_metrics(const struct skvcctl_source *source, char **ret_text, char *err,
				  size_t err_bytes);
/* 0 when there is no such number: an older daemon. */
uint64_t skvcctl_value(const struct skvcctl_picture *p, enum skvcctl_kind kind, const char *name);

void skvcctl_print_stats(const struct skvcctl_picture *p, FILE *out);
void skvcctl_print_namespaces(const struct skvcctl_picture *p, FILE *out);
void skvcctl_print_profiles(const struct skvcctl_picture *p, FILE *out);
void skvcctl_print_sessions(const struct skvcctl_picture *p, FILE *out);
void skvcctl_print_tenants(const struct skvcctl_picture *p, FILE *out);
void skvcctl_print_models(const struct skvcctl_picture *p, FILE *out);

/* The parts named by `what`, as one object.  0 or -ENOMEM. */
int skvcctl_print_json(const struct skvcctl_picture *p, unsigned what, FILE *out);

/* "1.50 GiB", "12.3 us": at most 15 bytes and NUL; returns buf. */
int skvcctl_parse_bytes(const char *text, uint64_t *ret); /* "20G"; 0 or -EINVAL */
const char *skvcctl_format_bytes(uint64_t bytes, char buf[16]);
const char *skvcctl_format_ns(uint64_t ns, char buf[16]);
const char *skvcctl_model_part(
	const struct skvcctl_profile *f); /* "none", "copy", "draft", "other" */

#endif
