/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client_rig.h - what most tests of the client library begin with: a fake daemon, a session, a namespace
 * of small blocks, an arena and a packed region over it.
 */
#ifndef SKVCD_TESTS_LIB_CLIENT_RIG_H
#define SKVCD_TESTS_LIB_CLIENT_RIG_H

#include <stdint.h>

#include "client-lib/skvc.h"
#include "tests/lib/fake_daemon.h"

#define RIG_BLOCKS 32u
#define RIG_SEGMENTS 4u
#define RIG_BLOCK_TOKENS 16u
#define RIG_BLOCK_BYTES (RIG_SEGMENTS * RIG_BLOCK_TOKENS * 2 * 8 * 2)

struct rig {
	struct fake_daemon *daemon;
	struct skvc_session *session;
	struct skvc_arena *arena;
	uint32_t ns;
	uint32_t region;
	unsigned log_lines;
	char log_last[320];
};

/* options->log is set by the rig; the rest may be NULL. */
void rig_init(struct rig *rig, const struct skvc_options *options);
void rig_deinit(
	struct rig *rig); /* fails the test if the daemon saw an entry that is not well formed */
int rig_namespace(struct skvc_session *session, const char *model, uint32_t *ret_ns);

struct skvc_key rig_key(uint32_t n);
uint8_t *rig_page(const struct rig *rig, uint32_t block);
void rig_fill(const struct rig *rig, uint32_t block, uint32_t seed);
int rig_is_filled(const struct rig *rig, uint32_t block, uint32_t seed);

/* Submit, wait, take. */
struct skvc_completion rig_finish(struct rig *rig, uint64_t job);
uint64_t rig_nop(struct rig *rig);
/* Blocks [0, count) under keys [0, count), waited for. */
void rig_store(struct rig *rig, uint32_t count);
uint64_t rig_lease(struct rig *rig, uint32_t count);

uint64_t rig_now_ns(void);
unsigned rig_open_fds(void);

#endif
