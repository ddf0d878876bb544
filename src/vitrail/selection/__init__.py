"""Requirements -> Selection: prune, order, search, judge, ship. The public function is `vitrail.select`."""
