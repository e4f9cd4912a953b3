/* SPDX-License-Identifier: Apache-2.0 */
/*
 * secret.h - the state directory and the 32 random bytes in it that make tenants' salts unguessable.
 * Start-up only, control thread.
 */
#ifndef SKVCD_DAEMON_SECRET_H
#define SKVCD_DAEMON_SECRET_H

#include <stddef.h>
#include <stdint.h>

#define SECRET_BYTES 32u

/*
 * Make state_dir (0700) when it is missing, and the file `secret` in it (0600) when that is missing:
 * whole or not at all.  0, or -errno with one line in err that says what to do.
 */
int secret_load(const char *state_dir, uint8_t ret_secret[SECRET_BYTES], char *err,
		size_t err_bytes);

#endif
