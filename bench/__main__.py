"""`python -m bench`."""

import sys

from bench.processes import end_in_order
from bench.run import main

end_in_order()
sys.exit(main())
