/* SPDX-License-Identifier: Apache-2.0 */
/*
 * names.c - words for reasons and for the library's version.  Constant tables; no session.
 */
#include "client-lib/skvc.h"
#include "ipc/abi.h"

#define STRING(x) #x
#define VERSION_STRING(major, minor, patch) STRING(major) "." STRING(minor) "." STRING(patch)

struct reason {
	const char *name;
	const char *text;
};

static const struct reason reasons[SKVC_ABI_REASON_COUNT] = {
#define REASON(id, word, sentence) [SKVC_ABI_REASON_##id] = { word, sentence },
	SKVC_ABI_REASONS(REASON)
#undef REASON
};

const char *skvc_reason_name(uint16_t reason)
{
	return reason < SKVC_ABI_REASON_COUNT ? reasons[reason].name : "unknown";
}

const char *skvc_reason_text(uint16_t reason)
{
	return reason < SKVC_ABI_REASON_COUNT
		       ? reasons[reason].text
		       : "a reason that this version of the library does not know";
}

const char *skvc_version(void)
{
	return VERSION_STRING(SKVC_VERSION_MAJOR, SKVC_VERSION_MINOR, SKVC_VERSION_PATCH);
}
