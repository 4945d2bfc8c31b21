/* libcuda.so.1 as a list of names. Each one hands its number and its arguments to what Python installed
   (tests/recording.py), which keeps the rules. NAMES is a list of NAME(number, function), written when this is
   compiled. No function of the driver that is called here has more than six arguments, all of them words. */

typedef unsigned long word;
typedef int (*Handler)(int, word, word, word, word, word, word);

static Handler handler;

void recording_install(Handler given) { handler = given; }

#define NAME(number, function)                                                     \
  int function(word a, word b, word c, word d, word e, word f) {                   \
    return handler ? handler(number, a, b, c, d, e, f) : 3; /* not initialized */  \
  }

NAMES
