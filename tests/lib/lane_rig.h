/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane_rig.h - a lane without a control thread and without processes: the test plays control (mail) and
 * client (rings) itself, so that every step of the data path can be driven and looked at.
 */
#ifndef SKVCD_TESTS_LIB_LANE_RIG_H
#define SKVCD_TESTS_LIB_LANE_RIG_H

#include <stdint.h>

#include "daemon/lane.h"

#define RIG_LAYERS 4u
#define RIG_HEADS 2u
#define RIG_DIM 64u
#define RIG_TOKENS 16u
#define RIG_PAGES 256u
#define RIG_ARGS_BYTES (1u << 20)
#define RIG_WAIT_NS 60000000000ull /* a test fails rather than hangs */

struct rig {
	struct config config;
	struct lane *lane;
	struct tenant tenant;
	struct namespace ns;
	uint32_t sessions;
};

struct lane_rig_session {
	struct rig *rig;
	struct session s; /* what control would own */
	int wake_fd;	  /* what the client would sleep on */
	struct region region;
	uint8_t *memory;    /* the "engine's pages", packed */
	struct ring sq, cq; /* the client's side */
	uint32_t args_next; /* bump allocator over the argument area */
	uint32_t handle;    /* region that stores and loads name; 1, the session's own, at first */
	uint64_t arg;	    /* of stores and loads: their events */
	uint8_t flags;	    /* of loads */
	uint32_t skip_tokens; /* of loads */
	uint32_t result_rel;  /* where the last load's results are */
};

void lane_rig_config(struct config *ret); /* small pool, no NVMe, fits early */
void lane_rig_start(struct rig *rig, const struct config *config);
/* What is on NVMe is found again, as the rig's namespace. */
void lane_rig_start_again(struct rig *rig, const struct config *config);
/* With memfds of an earlier life (fd + 1, 0: none), which are taken over: blocks of the rig's namespace are found. */
void lane_rig_start_warm(struct rig *rig, const struct config *config, int pool_fd, int index_fd);
void lane_rig_stop(struct rig *rig);

void lane_rig_session_open(struct rig *rig, struct lane_rig_session *rs);
/* The same for another namespace, of another tenant perhaps; it has the rig's geometry. */
void lane_rig_session_open_ns(struct rig *rig, struct lane_rig_session *rs, struct namespace *ns);
void lane_rig_session_close(struct lane_rig_session *rs); /* END, waits for GONE, frees */
/* Mail from the lane of this type about this session (others are dropped); fails the test after RIG_WAIT_NS. */
struct mail lane_rig_mail(struct rig *rig, uint32_t type);

uint8_t *lane_rig_page(struct lane_rig_session *rs, uint32_t page);
void lane_rig_fill(struct lane_rig_session *rs, uint32_t page,
		   uint32_t seed); /* gaussian bf16, exact per seed */
int lane_rig_page_is(struct lane_rig_session *rs, uint32_t page, uint32_t seed);
void lane_rig_make_page(const struct rig *rig, uint32_t seed, uint16_t *ret); /* packed */
struct skvc_abi_key lane_rig_key(uint32_t n);
/* To the lane, which must answer with res. */
void lane_rig_ask(struct rig *rig, const struct mail *m, int32_t res);

void lane_rig_submit(struct lane_rig_session *rs, const struct skvc_abi_sqe *sqe);
struct skvc_abi_cqe lane_rig_complete(struct lane_rig_session *rs); /* the next completion, waits */
int lane_rig_try_complete(struct lane_rig_session *rs,
			  struct skvc_abi_cqe *ret);		/* 1 when there was one */
struct skvc_abi_cqe lane_rig_done(struct lane_rig_session *rs); /* skips SOURCE_FREE */

/* Keys and pages first..first+count-1; user_data is the caller's. */
void lane_rig_store(struct lane_rig_session *rs, uint32_t first, uint32_t count,
		    uint64_t user_data);
/* The same with other pages: page..page+count-1. */
void lane_rig_store_at(struct lane_rig_session *rs, uint32_t first, uint32_t count, uint32_t page,
		       uint64_t user_data);
void lane_rig_drop(struct lane_rig_session *rs, uint32_t first, uint32_t count, uint64_t user_data);
void lane_rig_lookup_begin(struct lane_rig_session *rs, uint32_t first, uint32_t count,
			   uint64_t user_data); /* its completion comes like others */
struct skvc_abi_cqe lane_rig_lookup(struct lane_rig_session *rs, uint32_t first, uint32_t count);
struct skvc_abi_cqe lane_rig_pin(struct lane_rig_session *rs, uint32_t first, uint32_t count,
				 uint64_t ttl_ns);
void lane_rig_load(struct lane_rig_session *rs, uint64_t lease, uint32_t first_page, uint32_t count,
		   uint64_t user_data);
struct skvc_abi_cqe lane_rig_release(struct lane_rig_session *rs, uint64_t lease);
uint64_t lane_rig_bitmap(const struct lane_rig_session *rs, uint32_t rel);

#endif
