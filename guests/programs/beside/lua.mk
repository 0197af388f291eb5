# Lua 5.4: NAME/ is its source tree, as Debian's source package lua5.4 has it. No files, no system: the libraries that
# need none.
LUA := lapi lauxlib lbaselib lcode lcorolib lctype ldebug ldo ldump lfunc lgc llex lmathlib lmem lobject lopcodes lparser \
  lstate lstring lstrlib ltable ltablib ltm lundump lvm lzio
C_FILES := $(LUA:%=src/%.c) $(HERE)lua.c
FLAGS := -I$(DIR)/src '-Dluai_makeseed(L)=42'
LIBS := -lm
